"""`seresnet-hub export` as a file, for launchers that start one: the same options, and the same result."""

import sys

from seresnet_hub_command import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
