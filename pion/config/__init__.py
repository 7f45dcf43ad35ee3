"""The settings of a model, without torch: fields, parts, presets and LoRA."""
