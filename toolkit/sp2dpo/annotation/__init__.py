"""Ask a panel about every pair in a store."""
