"""Whether a module may be computed from its weights alone, past its own forward."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """False where it was replaced, as adapters, quantisation and parametrisations do, or somebody looks on by a hook.

    kind: the class that is computed. Of hooks those count that see a call, or its gradients, and those of all modules.
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)  # put there by libraries that move weights between devices
        and not any(getattr(module, hooks) for hooks in HOOKS)
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
    )
