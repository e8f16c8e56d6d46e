"""The base model: where it is, how it is loaded, its tokenizer, and the layers that get an
adapter."""
