"""An algorithm and a data module outside of lightning_meta."""
