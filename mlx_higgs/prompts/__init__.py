"""From words and voices to a `Prompt`: one module per model version."""
