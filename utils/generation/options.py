"""What decides which trips are generated. Imports nothing slow: the command line reads it."""

from dataclasses import dataclass

METHODS = ("search", "exact", "greedy", "sample")
SLOTS = 256
MAX_EXPANSIONS = 5000  # as published


@dataclass(frozen=True)
class GenerationOptions:
    """What decides which trips are generated."""

    method: str = "search"
    k: int = 1  # trips of each query
    max_expansions: int = MAX_EXPANSIONS  # of a query's search, or steps of a walk; 0: no limit
    temperature: float = 1.0  # of `sample`
    top_k: int = 0  # of `sample`; 0: all candidates
    seed: int = 0  # of `sample`, and of sampled times
