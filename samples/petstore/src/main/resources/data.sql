insert into owners (name, city, telephone) values ('Ada', 'London', '020 1815');
insert into owners (name, city, telephone) values ('Grace', 'New York', '212 1906');
insert into pets (name, kind, born, owner_id) values ('Byron', 'cat', '2020-12-10', 1);
insert into pets (name, kind, born, owner_id) values ('Moth', 'moth', '2024-09-09', 2);
