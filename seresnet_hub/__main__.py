"""`python -m seresnet_hub COMMAND …`, for launchers that start a module: the same as `seresnet-hub COMMAND …`."""

from seresnet_hub_command import main

if __name__ == "__main__":
    main()
