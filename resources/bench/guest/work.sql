-- A database in memory: inserts through an index, aggregates, a join, sorting, text functions, updates and deletes.
CREATE TABLE item (id INTEGER PRIMARY KEY, grp INTEGER, price REAL, name TEXT);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO item SELECT i, (i * 7919) % 101, ((i * 104729) % 10007) / 8.0, 'item-' || ((i * 15485863) % 20011) FROM n;
CREATE INDEX by_group ON item (grp, price);
CREATE INDEX by_name ON item (name);
COMMIT;
SELECT grp, count(*), sum(price), min(name) FROM item GROUP BY grp ORDER BY sum(price) DESC LIMIT 5;
SELECT a.id, b.id FROM item a JOIN item b ON a.grp = b.grp AND a.price = b.price AND a.id < b.id ORDER BY a.id LIMIT 5;
SELECT substr(name, 6, 2) AS p, count(*), total(length(upper(name))) FROM item GROUP BY p ORDER BY 2 DESC, 1 LIMIT 5;
UPDATE item SET price = price * 2 WHERE name LIKE 'item-1%';
DELETE FROM item WHERE grp BETWEEN 20 AND 40;
SELECT count(*), sum(price), max(name) FROM item;
SELECT name FROM item ORDER BY name DESC, price LIMIT 3;
