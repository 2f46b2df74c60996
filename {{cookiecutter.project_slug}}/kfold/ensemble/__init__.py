"""From many predictions to one: test-time views, averages over folds."""
