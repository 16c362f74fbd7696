"""The packages of the extra `import`."""

from utils.errors import UserError


def check_packages() -> None:
    """Say how to get the packages that read maps.

    Raises:
        UserError: one of them is not installed.
    """
    try:
        import networkx  # noqa: F401
        import osmium  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package {error.name} is not installed; run this with `uv run --extra import python ...`"
        ) from None
