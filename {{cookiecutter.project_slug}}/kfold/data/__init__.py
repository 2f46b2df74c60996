"""From the competition's files to batches, modules in the order data flows.

archive_rules, archive_formats, archive: a .zip or .tar -> files; tables: CSV files -> text; targets: text -> numbers;
images: a file -> pixels; scan: all image files, checked and fingerprinted; duplicates: fingerprints -> groups of
copies; check, check_images: every problem of the data at once; deal, splitters, assign, folds, card: rows -> folds.csv
and back; reduce, cache_index, cache_build, cache: files -> pixels, kept; augment, exact, loader, workers: pixels ->
batches; statistics: files -> numbers for stacking.
"""
