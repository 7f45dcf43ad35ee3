"""The page of `pion status --web`: runs while they train, read from their stores."""
