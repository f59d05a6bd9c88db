"""Describe models behind OpenAI-compatible servers, start the servers, and send requests."""
