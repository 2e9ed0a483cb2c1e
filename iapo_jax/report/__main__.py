"""`python -m iapo_jax.report`."""

from iapo_jax.report.command import main

if __name__ == "__main__":
    raise SystemExit(main())
