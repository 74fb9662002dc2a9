"""How the committed references got the columns of schema version 4, once: ``python results/reference/add_columns.py``.

The reader derives ``role`` from the outcome beside each table and ``tokens_seen`` of quality rows from the run's
training (:func:`archbench.results.reading.read_results`); this writes down what it reads, so that programs that know
nothing of archbench see it too. No measured value changes: tests/test_golden.py holds their digests.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from archbench.results.reading import read_results
from archbench.results.schema import arrow_schema, file_version

for file in sorted(Path(__file__).parent.rglob("runs.parquet")):
    if file_version(pq.read_schema(file)) == 3:
        rows = read_results(file, trials=True)
        table = pa.Table.from_pandas(rows, schema=arrow_schema(), preserve_index=False)
        pq.write_table(table.replace_schema_metadata(arrow_schema().metadata), file, compression="zstd")
