"""The rewrites, one a file; imported as `syncbn_convert.passes`."""

if __name__ != "syncbn_convert.passes":
    raise ImportError(
        f"this package is 'syncbn_convert.passes', not '{__name__}': "
        "install the project and import it under that name"
    )

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncbn_convert.passes.add_loss import AddLoss
    from syncbn_convert.passes.canonicalize_batchnorm import CanonicalizeBatchNorm
    from syncbn_convert.passes.configure_batchnorm import ConfigureBatchNorm
    from syncbn_convert.passes.constrain_parameters import ConstrainParameters
    from syncbn_convert.passes.convert_sync_batchnorm import ConvertSyncBatchNorm
    from syncbn_convert.passes.differentiate import Differentiate
    from syncbn_convert.passes.fold_constants import FoldConstants
    from syncbn_convert.passes.fold_moving_statistics import FoldMovingStatistics
    from syncbn_convert.passes.fuse_batchnorm import FuseBatchNorm
    from syncbn_convert.passes.insert_batchnorm import InsertBatchNorm
    from syncbn_convert.passes.merge_concats import MergeConcats
    from syncbn_convert.passes.merge_reshapes import MergeReshapes
    from syncbn_convert.passes.pack_gradients import PackGradients
    from syncbn_convert.passes.recognize_batchnorm import RecognizeBatchNorm
    from syncbn_convert.passes.regularize_parameters import RegularizeParameters
    from syncbn_convert.passes.remove_identities import RemoveIdentities
    from syncbn_convert.passes.replace_sequences import ReplaceSequences
    from syncbn_convert.passes.seed_randomness import SeedRandomness
    from syncbn_convert.passes.switch_randomness_off import SwitchRandomnessOff
    from syncbn_convert.passes.switch_randomness_on import SwitchRandomnessOn
    from syncbn_convert.passes.untie_parameters import UntieParameters
    from syncbn_convert.passes.update_parameters import UpdateParameters

__all__ = [
    "AddLoss",
    "CanonicalizeBatchNorm",
    "ConfigureBatchNorm",
    "ConstrainParameters",
    "ConvertSyncBatchNorm",
    "Differentiate",
    "FoldConstants",
    "FoldMovingStatistics",
    "FuseBatchNorm",
    "InsertBatchNorm",
    "MergeConcats",
    "MergeReshapes",
    "PackGradients",
    "RecognizeBatchNorm",
    "RegularizeParameters",
    "RemoveIdentities",
    "ReplaceSequences",
    "SeedRandomness",
    "SwitchRandomnessOff",
    "SwitchRandomnessOn",
    "UntieParameters",
    "UpdateParameters",
]


def __getattr__(name: str) -> Any:
    """Import a pass on first use, from the file of its name: a command loads only its own."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.replace("_", "") == name.lower():
            return getattr(importlib.import_module(f"{__name__}.{module.name}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
