"""``python -m trainwright.launcher``: what every pod is started with, by an operator of any version."""

from trainwright.launch.launcher import *  # noqa: F403
from trainwright.launch.launcher import main

if __name__ == "__main__":
    main()
