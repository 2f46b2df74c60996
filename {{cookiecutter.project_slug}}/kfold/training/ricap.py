"""RICAP: four crops of four images make one image. Takahashi, Matsubara and Uehara, arxiv.org/abs/1811.09030"""

import torch


def ricap(images: torch.Tensor, labels: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W) of four crops each, and labels (B, L) weighted by their areas, which add up to 1.

    The point where the four meet is drawn from Beta(beta, beta) in both directions, once for the batch; each quarter
    takes its crops from the batch in another order, at a random place. Draws from torch's generator.
    """
    height, width = images.shape[2:]
    share = torch.distributions.Beta(beta, beta).sample((2,))
    top, left = round(float(share[0]) * height), round(float(share[1]) * width)
    patched, mixed = torch.empty_like(images), torch.zeros_like(labels)
    for y, tall in ((0, top), (top, height - top)):
        for x, wide in ((0, left), (left, width - left)):
            order = torch.randperm(len(images)).to(images.device)
            from_y, from_x = (int(torch.randint(side + 1, ())) for side in (height - tall, width - wide))
            crops = images[order, :, from_y : from_y + tall, from_x : from_x + wide]
            patched[:, :, y : y + tall, x : x + wide] = crops
            mixed += labels[order] * (tall * wide / (height * width))
    return patched, mixed
