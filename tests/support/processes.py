"""Child processes that react to Ctrl-C however the tests themselves were started."""

import signal


def default_sigint() -> None:
    """Reset SIGINT; for ``subprocess.Popen(…, preexec_fn=default_sigint)``.

    A shell starts background commands (``nohup``, ``&``) with SIGINT ignored, and children inherit that. Python
    raises KeyboardInterrupt only if it starts with the default action.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
