"""The PEFT methods of hf-coop, one folder each: config, layer, model."""
