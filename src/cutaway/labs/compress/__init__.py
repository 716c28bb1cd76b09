"""Labs on smaller models: number formats, quantization, and what they cost."""
