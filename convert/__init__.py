"""The workshop: reference models, tiny checkpoints and goldens. Needs torch; never in the wheel."""
