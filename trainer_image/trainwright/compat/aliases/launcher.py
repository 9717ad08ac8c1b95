"""``python -m trainwright.launcher``: the command of every pod, for operators of all versions."""

from trainwright.launch.launcher import *  # noqa: F403
from trainwright.launch.launcher import main

if __name__ == "__main__":
    main()
