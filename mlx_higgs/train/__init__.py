"""Fine-tuning: conversations in, an adapter out."""
