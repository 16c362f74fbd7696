"""AdamW without PyTorch's compiler."""

import inspect

import torch
from torch.optim import Optimizer


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, whose methods do not import torch._dynamo.

    The library wraps them for the case that a step is compiled, which ours never is: only parts of the model are. That
    import takes about as long as the import of torch itself. Arithmetic and state are the library's.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
