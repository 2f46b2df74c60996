"""The stages of a backbone, in the order in which images pass: the stem, then what timm groups, to the features."""

from timm.models import group_parameters
from torch import nn

from kfold.errors import UserError


def stages_of(backbone: nn.Module) -> list[list[str]]:
    """Names of the parameters of each stage: for a ResNet the stem and layer1 to layer4; each block of a transformer.

    Raises UserError for a backbone whose stages timm does not name.
    """
    if not hasattr(backbone, "group_matcher"):
        raise UserError(
            f"freeze_stages: nobody tells the stages of {type(backbone).__name__}: use freeze_epochs, or leave it out"
        )
    groups = group_parameters(backbone, backbone.group_matcher(coarse=True))
    return [groups[number] for number in sorted(groups)]


def refuse_too_many_stages(backbone: nn.Module, name: str, wish: int) -> None:
    if wish and wish > len(stages := stages_of(backbone)):
        raise UserError(f"freeze_stages={wish}: {name} has {len(stages)} stages, the stem counted: take {len(stages)}")
