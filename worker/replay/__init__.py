"""`replay`: records of the input published again, for the ordinary path to judge. `resend`: stored answers sent again."""
