"""`python -m seresnet_hub COMMAND …`, for launchers that start a module: the same as `seresnet-hub COMMAND …`."""

if __name__ == "__main__":
    from seresnet_hub_command import main

    main()
