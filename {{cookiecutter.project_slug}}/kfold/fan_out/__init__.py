"""Many folds over the nodes of a Ray cluster, in the order of use.

plan: the runs, their folds and the command of each. storage: an object store in place of a shared folder. worker: one
fold on its node; both of these are sent there as they are, before any code of this repository is, and import none of
it. transfer: what goes to the storage before them, and comes home. cluster: all of them, with Ray. table: how far they
are. shards: test rows in parts, as tasks.
"""
