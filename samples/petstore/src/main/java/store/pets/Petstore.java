package store.pets;

import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cache.annotation.EnableCaching;

@SpringBootApplication
@EnableCaching
public class Petstore {
    public static void main(String[] args) {
        SpringApplication.run(Petstore.class, args);
    }
}
