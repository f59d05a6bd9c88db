"""From replies to one beta per pair, and the arms a schedule is compared with."""
