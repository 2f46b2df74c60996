"""A plain loop: Adam, cross entropy, timm's networks; with autocast and channels_last where they are asked for."""

import timm
import torch
from common import Clock, Device


def fit(train_batches, held_out_batches, given, clock: Clock) -> int:
    """How many held-out rows the network gets right after the last epoch; they are predicted after each."""
    layout = torch.channels_last if given.matched else torch.contiguous_format
    model = timm.create_model(given.backbone, pretrained=False, num_classes=10).to(Device, memory_format=layout)
    optimizer, right = torch.optim.Adam(model.parameters(), 3e-4), 0
    for _ in range(given.epochs):
        model.train()
        clock.start()
        count = 0
        for images, targets in train_batches:
            with autocast(given):
                logits = model(images.to(Device, memory_format=layout, non_blocking=True))
                loss = torch.nn.functional.cross_entropy(logits, targets.to(Device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += len(images)
        clock.stop(count)
        model.eval()
        right = 0
        with torch.no_grad(), autocast(given):
            for images, targets in held_out_batches:
                found = model(images.to(Device, memory_format=layout, non_blocking=True)).argmax(1)
                right += int((found == targets.to(Device)).sum())
    return right


def autocast(given) -> torch.autocast:
    return torch.autocast(Device.type, torch.bfloat16, enabled=given.matched)
