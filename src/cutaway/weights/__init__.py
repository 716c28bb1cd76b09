"""Checkpoints in and out: GGUF and its block formats, safetensors, and where models come from."""
