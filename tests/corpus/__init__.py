"""A corpus of bad and odd inputs, each with the outcome that is promised for it.

    python -m tests.corpus --output docs/robustness.md    run it, write the table of the docs
    python -m tests.corpus --make FOLDER                  only write the inputs

``kinds`` lists the inputs, ``base`` has the small brain that they are made from, ``runs`` writes them, runs the
program over them in as few processes as can be, and judges what came out.
"""
