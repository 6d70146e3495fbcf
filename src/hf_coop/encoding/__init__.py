"""Class names to class features: the token layout of prompts, and the text tower that encodes a shared prefix once."""
