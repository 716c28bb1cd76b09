"""Checkpoints in and out: GGUF (`gguf`, with its block formats in `blocks`) and Hugging Face `safetensors`."""
