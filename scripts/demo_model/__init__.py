"""The stages that make the bundled demo model: corpus, tokenizer, language model, SAEs, export, report."""
