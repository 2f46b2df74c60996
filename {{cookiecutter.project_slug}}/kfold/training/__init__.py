"""Training: precision, losses, optimizers, schedules, and the loop that uses them."""
