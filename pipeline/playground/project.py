"""The address of the project, where the installed package names one."""

from importlib.metadata import PackageNotFoundError, metadata


def project_link() -> str | None:
    """Return the first address under `[project.urls]` of pyproject.toml, as it was when the package was installed."""
    try:
        urls = metadata("smalti").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from its folder
        return None
    addresses = (url.partition(",")[2].strip() for url in urls)
    return next((address for address in addresses if address.startswith("https://")), None)
