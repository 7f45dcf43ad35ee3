"""What the pipeline promises, tested for each family of models.

families.py has one table with a tiny shape of each family. Each test of this folder runs for each
line of the table, so a new family is one new line. The tests use only the public seams: `Decoder`,
`Trainer`, `generate`, `export`, `cost`, the checkpointer and the command line.

    promise                                                    test
    a killed run ends with the weights of an unbroken run      test_training.py
    one worker, then two, then one: the same rows and weights  test_training.py
    documents packed into one row do not see each other        test_documents.py
    generation with a cache is the whole forward pass          test_generation.py
    a trace keeps what a forward pass keeps                    test_kept_bytes.py
    losses do not depend on how rows are computed, or padding  test_losses.py
    an export computes what the trained model computes         test_publish.py
    evaluation uses the softmax over the tokenizer's ids       test_evaluation.py
    `pion prove` finds no difference                           test_prove.py (-m soak)

The dense family also trains under Ray, in tests/runs/test_doors.py and test_ray.py.
"""
