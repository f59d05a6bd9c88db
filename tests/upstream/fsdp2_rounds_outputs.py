"""Under FSDP2 with mixed bf16 a model's float32 outputs are rounded to bf16, log-probs too.

Expected: that outputs keep the precision in which the model computed them (`output_dtype=None`), as
without FSDP. Seen with accelerate 1.15 and torch 2.13; one process on a CPU shows it.
"""

import os
import sys

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard

LOG_PROB = -126.86


class Model(torch.nn.Linear):
    def forward(self, rows):
        return super().forward(rows).float().sum() * 0 + LOG_PROB


os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True)
plugin.set_mixed_precision("bf16")
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
model = fully_shard(Model(4, 4), mesh=mesh, mp_policy=plugin.mixed_precision_policy)
log_prob = model(torch.ones(1, 4)).item()
torch.distributed.destroy_process_group()
if abs(log_prob - LOG_PROB) > 1e-3:
    sys.exit(f"defect: {log_prob} in place of {LOG_PROB}")
