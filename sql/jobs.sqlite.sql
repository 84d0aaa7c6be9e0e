-- jobs: the statement that SQLite words in its own way.

-- name: add_job_pr_link(id, link, now)<!
-- Differs: SQLite adds to an array with json_insert; elsewhere it is an operator.
-- Append a link in one statement, so that two agents lose none; one that is there already is not repeated.
-- No row: there is no such job.
UPDATE jobs
SET
    pr_links = CASE
        WHEN :link IN (SELECT e.value FROM json_each(pr_links) AS e) THEN pr_links
        ELSE json_insert(pr_links, '$[#]', :link)
    END,
    updated_at = :now
WHERE id = :id
RETURNING *;
