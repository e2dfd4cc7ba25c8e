-- What a PostgreSQL upstream writes into. Duet makes both tables where they are missing and it may; otherwise an administrator
-- runs this, with the table's name from the settings in place of duet_readings. More columns, indexes and partitions are welcome,
-- as long as Duet's columns keep their types and what it does not fill has a default.

CREATE TABLE IF NOT EXISTS duet_readings (
    spool    uuid        NOT NULL, -- with index, names a reading for ever
    index    bigint      NOT NULL,
    device   text        NOT NULL,
    id       uuid        NOT NULL, -- the device's own name for the reading: the same where a device sent it twice
    type     text,                 -- nothing for a reading; what happened, for a notice
    channel  integer,              -- nothing for a notice
    received timestamptz NOT NULL,
    measured timestamptz NOT NULL,
    again    boolean     NOT NULL, -- the device said that it may have sent it before
    payload  bytea,                -- what the device sent; nothing in a notice without it
    facts    jsonb,                -- of a notice
    PRIMARY KEY (spool, index)
);

-- The last index of each spool that the table has. It changes in the transaction that writes the readings, and decides where
-- delivery goes on: leave it alone.
CREATE TABLE IF NOT EXISTS duet_readings_cursor (
    spool   uuid        PRIMARY KEY,
    last    bigint      NOT NULL,
    changed timestamptz NOT NULL DEFAULT now()
);
