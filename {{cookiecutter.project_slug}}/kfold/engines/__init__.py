"""How trained models run over images, fast: what a model is made into (inference, fold_batch_norm, converted, ready),
which of these ways is taken on this machine (trial), how many models fit into memory (held), and the pass over the
images that serves all of them (one_pass)."""
