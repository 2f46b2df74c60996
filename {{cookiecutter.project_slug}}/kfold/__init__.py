"""The blocks that the stage scripts are made of; data flows config -> data -> model -> training -> ensemble.

Blocks take plain values and know no paths (only artifacts.py does). engines: how trained models run, fast. setup,
inference, prediction_job, runs, rehearsal and verify put the blocks together for the scripts. Importing this package
imports nothing heavy.
"""

import os

# albumentations asks the package index for a newer version when imported: 2 s lost, and a warning, without internet.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# OpenCV refuses larger images before it allocates them (read when cv2 is imported). Same cap as Pillow's.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(178_956_970))
# A damaged image is named by our own message, with its id; OpenCV's warning names neither.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
