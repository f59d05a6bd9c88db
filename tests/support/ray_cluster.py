"""A Ray cluster of several nodes on this computer, which does what it is told on standard input.

    python tests/support/ray_cluster.py

It prints its address, then reads `add` and `kill` (the newest node), and says `done` to each.
It ends with its standard input.
"""

import os
import sys

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

from ray.cluster_utils import Cluster

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}


def main():
    cluster = Cluster(initialize_head=True, head_node_args=SMALL)
    nodes = []
    try:
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.strip() == "add":
                nodes.append(cluster.add_node(**SMALL))
            elif line.strip() == "kill":
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
