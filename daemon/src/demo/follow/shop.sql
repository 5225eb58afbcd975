BEGIN;
INSERT INTO shopping_carts (storefront_id, note) VALUES ('{tenant}', 'by an application that follows the routes');
UPDATE storefronts SET settings = settings || '{"followed": true}' WHERE id = '{tenant}';
COMMIT;
