"""Whether anybody is logged in at W&B, found out without asking W&B."""

import netrc
import os
from urllib.parse import urlsplit


def usual_mode() -> str:
    """Online for who is logged in: a key in the environment, or one for W&B's host in the netrc file."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"
