"""A bar for long work: images done, images a second, and the time that is left. Quiet where nobody looks on."""

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from kfold.data.loader import Batch


def image_bar(title: str, num_images: int, done: int = 0) -> tqdm:
    """done: images of before an interruption."""
    return tqdm(initial=done, total=num_images, desc=title, unit="image", disable=None, leave=False)


def with_bar(batches: Iterable[Batch], title: str, num_images: int) -> Iterator[Batch]:
    """The batches; the bar moves when the next one is asked for."""
    with image_bar(title, num_images) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.images))
