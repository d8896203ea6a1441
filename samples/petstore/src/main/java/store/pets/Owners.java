package store.pets;

import java.util.List;
import org.springframework.data.jpa.repository.JpaRepository;
import org.springframework.data.jpa.repository.Query;

interface Owners extends JpaRepository<Owner, Long> {
    List<Owner> findByNameContainingIgnoreCase(String part);

    @Query("select distinct p.kind from Pet p order by p.kind")
    List<String> kinds();
}
