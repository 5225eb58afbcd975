SELECT count(*) FROM shopping_carts WHERE storefront_id = '{tenant}' AND note = 'by an application that follows the routes'
