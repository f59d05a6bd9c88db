"""Models behind OpenAI-compatible servers: described, started, and called with retries."""
