"""TRL's DPO trainer with per-pair columns."""
